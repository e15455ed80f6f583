"""Trains the networks of ``model/``: depth first, then the trajectory with everything else frozen (paper, 4.2).

scenes.py       what trains and what validates, with licences; pictures with depth, rooms of photographs
clips.py        blurred clips with their truth, rendered as they are used
measurement.py  the depth that tracked points give, simulated
depth.py        stage 1: the depth network
trajectory_clips.py, examples.py   what the real pipeline saw of such clips
trajectory.py   stage 2: the Gauss–Newton layer, the attention decoder
ablation.py     networks that differ in one size, trained alike
exported.py     weights back out of exported graphs
loop.py         what all share: steps, validation, checkpoints, resume, curves
"""
