"""Adapters of public layers that are made, or called, in another way than nn.BatchNorm."""
