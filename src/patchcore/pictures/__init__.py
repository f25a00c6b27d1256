"""Pictures of what a detector says: overlays and score histograms; arrays and a font."""
