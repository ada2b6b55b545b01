"""The laws of layers that synchronise over processes."""
