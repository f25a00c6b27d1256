"""Backbones: name -> frozen network and weights."""
