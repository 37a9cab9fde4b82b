# each line as a string literal of C: short enough for C99, which a whole page would not be
s/[\\"]/\\&/g
s/.*/"&\\n",/
