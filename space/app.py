"""The page of `timm-sk demo` as a Hugging Face Space; gradio reads host and port from the environment."""

from timm_sk.demo import serve

if __name__ == '__main__':
    serve()
