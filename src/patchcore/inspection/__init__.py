"""New images: finding them or waiting for them, judging them, and what is left of that."""
