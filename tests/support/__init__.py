"""Code that several tests share: tiny models and files, cases, processes and servers."""
