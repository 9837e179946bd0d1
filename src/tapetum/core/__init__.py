"""What every room may use: errors, settings, limits, files, downloads, tables of results, small shared types."""
