"""What goes over the wire: OpenAI's requests and answers, a file for each endpoint.

Knows no engine's inside and no HTTP: a request's body becomes what an engine is asked, or a RequestError.
"""
