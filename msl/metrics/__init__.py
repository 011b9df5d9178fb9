"""What a run tells of itself: TensorBoard, Ray's metrics, and the summary."""
