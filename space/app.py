"""The page of `timm-sk demo` as a Hugging Face Space; gradio reads host and port from the environment."""

import os

from timm_sk.demo import serve

if __name__ == '__main__':
    os.environ.setdefault('FORWARDED_ALLOW_IPS', '10.0.0.0/8')  # the proxy of Spaces, which names the visitors
    serve()
