"""Searchers against each other on tables: runs, statistics, goals and the page that says what came out."""
