"""``fewstep app``: a page that makes 3-D objects from pictures and shows students side by side.

The server is the standard library's and the viewer is that of ``fewstep bench --report``. Gradio was considered: it
adds 40 packages, loads fonts from the network, and its viewers cannot be turned together.
"""
