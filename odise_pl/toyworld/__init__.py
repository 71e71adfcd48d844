"""The small world: painted data sets, their frozen networks, and a demo of the whole project."""
