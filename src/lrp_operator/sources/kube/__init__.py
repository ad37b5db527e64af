"""Objects from the Kubernetes API: who we are to it (credentials), one way to ask (client), one to follow (informer).

    credentials ──▶ client ──▶ informer ──▶ changes of one kind of object, for ever
    (tokens rotate)  (requests,   (list, watch, resume, list anew)
                      watch lines)

Nothing here knows what the objects are for. The agent and the controller both stand on it.
"""
