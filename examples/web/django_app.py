"""Django, or any WSGI framework: one blocking client, made when the module is imported. Forked
workers inherit it.

gunicorn --workers 2 --threads 4 --preload examples.web.django_app:application
"""

from __future__ import annotations

import os

import django
import holdfast
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import path

from examples.web.counter import Counter

# The client connects when it is first used, in the process that uses it.
client = holdfast.connect_blocking(os.environ["HOLDFAST_GATEWAY"], timeout=10)


def increment(request: HttpRequest, key: str) -> JsonResponse:
    try:
        n = client.get(Counter, key).increment()
    except holdfast.Rejected as refused:
        return JsonResponse({"error": str(refused)}, status=409)
    return JsonResponse({"n": n, "pid": os.getpid()})


urlpatterns = [path("counters/<str:key>", increment)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for this example")
django.setup()
application = WSGIHandler()
