"""Pictures of what a detector found: overlays, verdicts and score histograms, drawn with arrays and a font."""
