"""The page of `timm-sk demo` as a Hugging Face Space, which says by its environment where to listen."""

from timm_sk.demo import serve

if __name__ == '__main__':
    serve()
