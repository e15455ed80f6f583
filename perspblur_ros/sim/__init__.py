"""Renders what a turning camera sees: a picture with depth, a rotation path about a pivot, a shutter, a sensor.

scene.py   the world: one sharp picture in linear light with metric depth
motion.py  the path: rotation and pivot over time, from rates, a gyro recording or the hand-motion model
sensor.py  from linear light to the 8-bit picture: shot and read noise, transfer curve
render.py  one frame: row-timed exposure of the moving view
clips.py   a clip of frames with its truth

``torch_render.py`` is render.py for batches of small clips on a CPU or GPU: training data, made as it is used.
"""
