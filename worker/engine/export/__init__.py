"""Writing the files a person downloads."""
