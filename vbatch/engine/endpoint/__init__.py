"""The engine ``endpoint``: other servers with OpenAI's API answer the requests.

``client`` talks to one server, ``rules`` say what an answer means, ``limits`` how many requests a server gets at once,
``place`` is what is known of one server, ``watch`` looks after it, and ``pool`` gives requests to all of them.
"""
