"""Bags in and out, replay without ROS, metrics, and the report.

bags.py      rosbag2 folders: read (MCAP and sqlite3) and written (MCAP)
clips.py     clip folders and rendered clips → bags
replay.py    bag → pipeline → files; writers.py the files themselves, TUM and Gyroflow
metrics.py   estimate against truth; evaluate.py for all methods of a run
report.py    the HTML page, with plots.py and pictures.py; tables.py the tables of the command line
accuracy.py  the evaluation set through all of it
"""
