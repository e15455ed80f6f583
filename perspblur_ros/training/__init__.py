"""Trains the networks of ``model/``: depth first, then the trajectory with everything else frozen (paper, 4.2).

scenes.py       what trains and what validates, with licences; pictures with depth, rooms of photographs
clips.py        blurred clips with their truth, rendered as they are used
measurement.py  the depth that tracked points give, simulated
depth.py        stage 1: the depth network
loop.py         what both stages share: steps, validation, checkpoints, resume, curves
"""
