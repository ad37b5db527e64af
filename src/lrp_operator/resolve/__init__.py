"""Policies + cluster objects -> the redirect table of one node, and a verdict for every policy.

Pure: no clock, no API, no kernel. semantics.md is the contract.
"""
