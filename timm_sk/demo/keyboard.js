// gradio 6 takes Tab in a list of choices for a letter: the list would stay open, over what is below it.
() => {
    document.addEventListener('keydown', (event) => {
        if (event.key === 'Tab' && event.target.role === 'combobox') {
            event.stopImmediatePropagation();
            event.target.blur();
        }
    }, true);
}
