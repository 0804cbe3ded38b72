"""What the commands draw on a terminal: bars, tables, live views, images. rich lives here."""
