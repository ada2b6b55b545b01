"""`@pytest.mark.ranks(n)`: run a test on n processes, each a rank of a process group."""
