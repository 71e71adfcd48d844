"""The small world: painted data sets, their frozen models, and a demo of the whole project."""
