"""Recordings of any length, live streams, and sessions that remember a voice."""
