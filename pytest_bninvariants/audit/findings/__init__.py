"""What an audit tells: its findings, and the verdicts and markers that are made of them."""
