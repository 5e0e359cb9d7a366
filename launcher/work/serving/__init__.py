"""Parts of the serve worker: the engines' command lines, the server process, and one request to it."""
