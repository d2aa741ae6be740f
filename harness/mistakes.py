"""A picture of images that a network is wrong about, for TensorBoard."""

import io

from harness.matrices import figure, plain_style

COLUMNS = 6
LONGEST = 22  # characters of a line under an image


@plain_style()
def draw(images, titles):
    """Draws images side by side, each under its title.

    Args:
      images: [N, H, W] uint8, or [N, H, W, C] with up to four channels.
      titles: label and prediction of each image.

    Returns:
      The bytes of a PNG file.
    """
    rows = -(-len(images) // COLUMNS)
    picture = figure.Figure(figsize=(1.6 * COLUMNS, 2.0 * rows), layout="constrained")
    panels = picture.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for panel, image, (label, prediction) in zip(panels, images, titles):
        panel.imshow(shown(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_title(title_of(label, prediction), fontsize=7)
    content = io.BytesIO()
    picture.savefig(content, format="png", dpi=120)
    return content.getvalue()


def shown(image):
    """An image as Matplotlib shows it: three channels in colour, one in grey.

    Of four channels, the first three are shown; of two, the mean.
    """
    channels = image.shape[2] if image.ndim > 2 else 1
    if channels > 2:
        return image[..., :3]
    return image.reshape(*image.shape[:2], channels).mean(axis=2)


def title_of(label, prediction):
    """Label → prediction: in one line if they fit, or else in two."""
    label, prediction = (
        name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in (label, prediction)
    )
    gap = " " if len(label) + len(prediction) + 3 <= LONGEST else "\n"
    return f"{label}{gap}→ {prediction}"
