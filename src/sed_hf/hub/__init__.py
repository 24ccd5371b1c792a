"""Models in folders and on the Hub: loading, saving, exporting."""
