"""A sweep file, read and validated; its variants and cells. Neither Ray nor torch."""
