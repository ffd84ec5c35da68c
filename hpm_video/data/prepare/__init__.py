"""Preparation before training: making lists, checking and transcoding videos, toy videos."""
