"""tqdm's bar, as the program asks for it: its variables change every bar's defaults, and a wrong
value of one ends its import. TQDM_DISABLE=1 still hides the bars."""

from harness.environment import hidden

with hidden("TQDM_", shown=["TQDM_DISABLE"]):
    import tqdm

ProgressBar = tqdm.tqdm
