"""Report: from records to tables, plots and one HTML page."""
