"""What the commands draw on a terminal: progress bars, tables, live views, images. Only these modules import rich."""
