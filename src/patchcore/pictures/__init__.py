"""Pictures of what a detector found: overlays and score histograms, drawn with arrays and a font."""
