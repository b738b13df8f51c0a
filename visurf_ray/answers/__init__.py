"""The form of a response: think and answer tags, boxes, formulas, detections, masks. Pure functions."""
