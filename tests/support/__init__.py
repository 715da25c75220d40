"""What several tests share: tiny models and files, cases, processes, servers."""
