"""The web page: pictures segmented by typed words, in a browser."""
