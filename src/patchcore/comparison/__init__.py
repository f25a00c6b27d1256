"""Results folders -> the study's tables, plots and recommendations, as text, Markdown, CSV and one HTML page."""
