"""The door: the `mmjax` command. Nothing here is imported by the rest of the package."""
