"""The rules that find why frozen state moved."""
