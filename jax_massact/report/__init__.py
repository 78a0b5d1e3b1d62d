"""The toolkit of reports: words, terminal, page, charts and their painters."""
