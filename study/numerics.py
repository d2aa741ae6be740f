"""Of which numerics and of which network a record is, and what one table may show together.

Numerics is a number that is raised by a change of the program that alters a result's bits.
"""

from harness.errors import Failed
from harness.names import PLACES, numerics_of, sharing_of

# Of records that name no network, which are older: those of 630d4e2. What a network shares -> what
# `model.Model.checksum` says of it.
FIRST_NETWORKS = {
    "none": "edb65bceee1b54713620467acb8ae9dd58173d313363d4d98cb006a2da2c13d7",
    "channel": "e88633dddaead6113d00ffa55138a61565b2fc22fb0fc7b14412dc3691c25d77",
    "layer": "beef17a9117ea92a8f414f0d0ab97f8dda63d6f909bb4dea323e45d26d61b052",
    "nddr": "92eee88902e0a502f99b69a5c2bc08b4118005fd3719d345caf023a011ca616a",
    "channel at pool_1": "5cf9496c1cf5db999d4bdd338effbe9e23395646e434a56b0bd1ad23994e2cda",
    "channel at pool_2": "43b1f1bebf1532887bb40b122eb6fc15d3d23e31e5df0801c96d90371f5064d4",
    "channel at fc_3": "4ddcf5a64281ac8d907a7148fdb97b55ecfc1fdf5af5684dce5c507a06820dbb",
    "layer at pool_1": "4c85f341cef41c7c2ef56e4af7b4251428faac3f443bed119fef0dcb0aba6a87",
    "layer at pool_2": "12f84b4ca3dbe019cf5110f8cc1ce52647bc003dd342362f201d507952e6ded8",
    "layer at fc_3": "c1e1cbdb81e172ef295e97d6b4421be096922fe07e607e673b4ebc8d3e941e79",
    "none until pool_1": "dabdd7f167213d5ee232e81327ca022ea410acc56c081428d866b10a1ecfb4e7",
    "none until pool_2": "1440fda8907d22e84ed943e33ea5c3a4c8c80be6ee36e906385eb8abb06b2b5a",
    "hard_sharing": "c93e19b3379fdf2abd26e965c108a362cfd5aa96107d3a70ddea64d31f2947bb",
}


def network_of(record):
    """The checksum of the trained variables' names and shapes; None if it is not known, as
    of a run that diverged."""
    if "diverged" in record:
        return None
    return record.get("network") or FIRST_NETWORKS.get(sharing_in_words(record["flags"]))


def sharing_in_words(flags):
    """What the network shares, and where: "channel", "layer at fc_3", "none until pool_1"."""
    words, everywhere = [sharing_of(flags)], ",".join(PLACES)
    if words[0] not in ("none", "hard_sharing"):
        places = flags.get("cross_stitch_at", everywhere)
        words += ["at", places] if places != everywhere else []
    words += ["until", flags["share_until"]] if flags.get("share_until") else []
    return " ".join(words)


def check_alike(folder, found):
    """Checks that one table may show these records, which are in this folder, or in several.

    Raises: Failed, they are of several numerics, or those of a setting of several networks.
    """
    several = sorted({numerics_of(record) for record in found})
    if len(several) > 1:
        refuse(folder, f"of numerics {' and '.join(map(str, several))}")
    networks = {}
    for record in found:
        setting, network = record["setting"], network_of(record)
        if network and networks.setdefault(setting, network) != network:
            refuse(folder, f"of {setting!r} with two networks")


def refuse(folder, which):
    raise Failed(
        f"{folder}: records {which} do not go into one table. Delete those of one, and make their"
        " runs again."
    )
