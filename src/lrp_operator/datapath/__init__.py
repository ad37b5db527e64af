"""The redirect table -> the kernel: map layouts, allocation of slots and ids, the difference, links.

A table comes in as `resolve.model` values. `tables` knows what the maps must hold and writes the difference in an
order that no packet can see half of; `programs` has the loader compile what the mode asks for and attaches it;
`engine` is the front door that the agent talks to.
"""
