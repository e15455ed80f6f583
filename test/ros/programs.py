"""Programs for tests that need another process.

camera FRAMES FPS WIDTH HEIGHT   publishes noise as a mono8 camera; says READY when somebody listens, DONE at the end
imu_counter DEPTH                counts /dense_trajectory with a default subscription; says each second what it has
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import cv2
import numpy as np


def camera(frames: int, fps: float, width: int, height: int) -> None:
    import rclpy
    from sensor_msgs.msg import CameraInfo, Image

    from perspblur_ros.camera import Camera
    from perspblur_ros.ros import middleware
    from perspblur_ros.ros.conversions import camera_info_message, image_message

    middleware.prepare_process()
    rclpy.init()
    node = rclpy.create_node("camera")
    images = node.create_publisher(Image, "image_raw", 10)
    infos = node.create_publisher(CameraInfo, "camera_info", 10)
    model = Camera(width, height, 0.9 * width, 0.9 * width, (width - 1) / 2, (height - 1) / 2)
    noise = np.random.default_rng(0).standard_normal((height, width)).astype(np.float32)
    texture = np.clip(128 + 300 * cv2.GaussianBlur(noise, None, 2.0), 0, 255).astype(np.uint8)
    while not (images.get_subscription_count() and infos.get_subscription_count()):
        time.sleep(0.01)
    infos.publish(camera_info_message(model, time.time_ns(), "camera_optical_frame"))
    print("READY", flush=True)
    start_s, start_ns = time.monotonic(), time.time_ns()
    for k in range(frames):
        stamp_ns = start_ns + round(k / fps * 1e9)
        infos.publish(camera_info_message(model, stamp_ns, "camera_optical_frame"))
        images.publish(image_message(np.roll(texture, k, axis=1), "mono8", stamp_ns, "camera_optical_frame"))
        time.sleep(max(start_s + (k + 1) / fps - time.monotonic(), 0.0))
    print("DONE", flush=True)
    sys.stdin.read()  # shared memory goes with its process
    rclpy.shutdown()


def imu_counter(depth: int) -> None:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from sensor_msgs.msg import Imu

    rclpy.init()
    node = rclpy.create_node("counter")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    count = 0

    def take(message: Imu) -> None:
        nonlocal count
        count += 1

    subscription = node.create_subscription(Imu, "dense_trajectory", take, depth)
    while not subscription.get_publisher_count():  # the publisher may know us before we know it
        time.sleep(0.01)
    print("READY", flush=True)
    said_s = time.monotonic()
    while True:
        executor.spin_once(timeout_sec=0.1)
        if time.monotonic() - said_s > 0.2:
            said_s = time.monotonic()
            print(count, flush=True)


if __name__ == "__main__":
    program = {"camera": camera, "imu_counter": imu_counter}[sys.argv[1]]
    with suppress(KeyboardInterrupt):
        program(*(float(v) if "." in v else int(v) for v in sys.argv[2:]))
