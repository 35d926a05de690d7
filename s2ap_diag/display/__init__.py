"""How a result shows itself: as a frame, a picture, a table in a notebook."""
