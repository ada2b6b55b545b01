"""Pages of HTML with pictures: self-contained, without a server, a network or a dependency."""
