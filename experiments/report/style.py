"""Colours and sizes that the pictures share."""

# Okabe and Ito's colours, which can be distinguished with any colour vision.
COLOURS = tuple(
    f"#{rgb:06X}"
    for rgb in (0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7, 0xE69F00, 0x56B4E9, 0xF0E442)
)
# More than colours, so that lines of one colour differ in their marker.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "p", "<", ">")
HATCHES = ("", "///", "...", "xxx")
GREY = "#9A9A9A"
# For lines on colours that are light on dark pages too, where black is made light.
DARK = "#1A1A1A"
# Inches: narrow enough for the text to be read on a phone's screen.
WIDTH = 6.4


def colour_of(index: int) -> str:
    """Returns the colour of a model or line, by number."""
    return COLOURS[index % len(COLOURS)]
